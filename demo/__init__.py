"""`make demo`: Winnow from end to end on this machine, with a network trained on the spot.

* `run`     the demo: start the stack, compress over HTTP, use the file that comes back
* `digits`  a small CNN for handwritten digits, and its data, as files; `python -m demo.digits FOLDER` writes just those
* `stack`   Winnow's whole stack as a child process that can't be left behind
"""
