"""Does mining help? Miners against tuned uniform InfoNCE, on paired seeds; README.md has the protocol and the table."""
