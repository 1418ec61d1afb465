"""What the twistd commands have in common."""
