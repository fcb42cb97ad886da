"""Other tools' files. Each module has ``sniff(row)``, ``load(rows)`` and ``dump(records)``.

What a format has a place for stands in that place and is what counts when it is read back; the
rest travels in one column or field named ``trimtab``, so that nothing is lost on the way.
"""
