"""Whole reports to an index, without its pauses."""


def apply(index, worker, instance_id, first_sequence, changes):
    """The next number that the index expects."""
    return _fed(index, worker, index.apply(worker, instance_id, first_sequence, changes))


def replace(index, worker, instance_id, sequence, hashes):
    """The next number that the index expects."""
    return _fed(index, worker, index.replace(worker, instance_id, sequence, hashes))


def _fed(index, worker, steps):
    for _ in steps:
        pass
    return index.sequence(worker)
