"""Files, processes and versions: what the package needs of the machine that it runs on.

`files.py` writes a file whole or not at all, `processes.py` shares work among processes, and `provenance.py` lists the
versions of packages. The three files are independent of each other.
"""
