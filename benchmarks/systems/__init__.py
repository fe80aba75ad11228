"""The systems that contrastive learning grew from, one file each, of blocks; README.md says how to run them."""
