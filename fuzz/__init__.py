"""Harnesses that try to break fastsmtp; `docs/fuzzing.md` tells how to run them.

    python -m fuzz.twins     the compiled text protocol against the pure one
    python -m fuzz.server    the server's protocol, without I/O
    python -m fuzz.client    the client's protocol, without I/O

Each takes --seconds or --executions, --seed and --jobs, counts what it did, and prints how to do a round that failed again.
"""
