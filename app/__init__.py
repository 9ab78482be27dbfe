"""The face: pages, API, commands and the supervisor that keeps the processes running."""
