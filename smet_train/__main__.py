"""``python -m smet_train`` is ``smet-train``."""

from smet_train.cli.train import main

if __name__ == "__main__":
    main()
