import sys

from nnunet_ext.cli.main import main

sys.exit(main())
