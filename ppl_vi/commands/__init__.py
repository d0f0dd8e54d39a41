"""The commands of `ppl-vi`, a file each; those of sweeps are in `ppl_vi/sweeps/commands.py` and `show.py` there."""
