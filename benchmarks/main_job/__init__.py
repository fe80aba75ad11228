"""The main job on real data: `kpair train`, several seeds, with and without a miner."""
