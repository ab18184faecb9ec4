"""Terms that any method's loss can be given: pure functions of its features."""
