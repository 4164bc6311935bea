"""A trained model: its checkpoint, what is built from stored facts, the notebook's Model, exports."""
