"""``python -m gateway`` is ``castgate``, where the package is not installed or its scripts are not on the PATH."""

from gateway.cli import main

if __name__ == "__main__":
    main(prog_name="castgate")
