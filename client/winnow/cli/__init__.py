"""The command line `winnow`: made of `winnow.Client`'s calls and nothing else.

* `main`      the commands' flags, and what each exit code means
* `commands`  what each command does
* `requests`  a job's request from flags and a recipe file
* `progress`  bars on a terminal, plain lines elsewhere
* `tables`    lists and reports for reading
"""
