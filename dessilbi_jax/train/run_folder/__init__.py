"""What a run keeps on disk: its folder, lock, records, checkpoints and outcome.

Everything is written at once or not at all, a kill at any moment loses nothing that was kept, and
nothing is deleted that a run did not write.
"""
