"""`python -m cdo_ad`: the same as the command `cdo-ad`."""

from cdo_ad.cli.main import main

if __name__ == "__main__":
    main()
