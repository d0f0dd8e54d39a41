"""Files, processes, versions and progress: what the package needs of the machine that it runs on.

`files.py` writes a file whole or not at all, `processes.py` shares work among the processes that `workers.py` starts
and ends, `signals.py` keeps what is finished when a signal ends a program, and `provenance.py` lists the versions of
packages. `stages.py` tells how far the work has come, and `display.py` shows that.
"""
