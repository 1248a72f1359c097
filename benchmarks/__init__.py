"""What is measured, how, and on what: one file a question. Figures and the commands that made them are in README.md."""
