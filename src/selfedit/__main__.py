"""`python -m selfedit`: the command line, where the `selfedit` script is not on the path."""

from selfedit.cli.main import main

raise SystemExit(main())
