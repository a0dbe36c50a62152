"""The run-books of docs/operations.md, executed as written."""
