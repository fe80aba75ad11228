"""The experiments of Tschannen et al. (2020), one file each; README.md says how to run them and what differs."""
