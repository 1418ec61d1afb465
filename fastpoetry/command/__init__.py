"""The parts that the twistd commands share."""
