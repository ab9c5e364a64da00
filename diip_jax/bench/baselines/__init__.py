"""The compared methods, one module each, all on the same frozen prior.

Each module has a `Config` of its settings and

    restore(prior, y, key, config, operator=None) -> Restored
"""
