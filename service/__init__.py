"""The HTTP front: it stores what clients bring, writes down what they ask for, and shows what became of it.

It parses no model and no dataset, and never loads torch. See `app.py` for how it is put together.
"""
