"""How a poem gets out of a socket, by which rules, and how it is counted."""
