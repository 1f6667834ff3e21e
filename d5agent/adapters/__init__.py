"""One vendor each; its exceptions and its types end here."""
