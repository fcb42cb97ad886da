"""Other tools' formats. Each module has ``sniff(row)``, ``load(rows)`` and ``dump(records)``.

A field that the format has a place for is written there, and that place takes precedence when the
file is read back. All other fields are in one column named ``trimtab``, so that nothing is lost.
"""
