"""The command line without a handler of signals: the control of SIGTERM in ``test_resume``."""

from __future__ import annotations

from trimtab.cli.main import main
from trimtab.train import loop

if __name__ == "__main__":
    loop.signal.signal = lambda *_: None  # type: ignore[assignment]
    main()
