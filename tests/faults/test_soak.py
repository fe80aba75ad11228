"""The soak in short: some rounds of random kills and disk faults; soak.py run as a command is the long one."""

import soak


def test_faults_are_survived_without_a_lost_checkpoint_or_another_bit():
    tally = soak.soak(rounds=8, seed=3)
    assert sum(tally.survived.values()) >= 3
    assert (tally.lost, tally.different, tally.failed) == (0, 0, 0)
