"""The way back: from Amazon DocumentDB to MongoDB, with nothing lost and nothing invented."""
