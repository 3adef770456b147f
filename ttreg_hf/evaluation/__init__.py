"""Does it help? Dense tasks and classification, measured for a checkpoint on a user's data, beside controls."""
