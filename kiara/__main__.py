"""Entry point of `kiara` and `python -m kiara`; Ctrl-C works while the command is still being imported."""

from kiara_runtime.system import early_interrupts


def main() -> None:
    with early_interrupts():
        from kiara.commands.main import main as command
    command()


if __name__ == "__main__":
    main()
