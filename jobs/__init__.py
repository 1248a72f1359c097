"""What the processes of Winnow agree on: recipes, states, reports, errors, and the database that is the truth of every job.

No web framework, no queue and no torch is imported here, so that every process can.
"""
