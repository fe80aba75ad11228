"""Past the log K wall: K hard negatives of a known proposal inside a pool, beside what else there is.

`oracle` judges the estimator alone (exact critics), `trained` trains critics on Gaussians, `halves` on the halves of
MNIST's digits, `images` trains an encoder. Each run is one line of ``results.jsonl``; ``report`` makes the tables.
"""
