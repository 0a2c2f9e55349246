"""``python -m bench.demo``: a whole cluster lives, is hurt, grows, shrinks, and proves that nothing was lost."""
