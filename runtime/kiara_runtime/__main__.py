"""Entry point of `kiara-run` and `python -m kiara_runtime`: handles signals while the commands are imported."""

from kiara_runtime.system import early_interrupts


def main() -> None:
    with early_interrupts():
        from kiara_runtime.commands.main import main as command
    command()


if __name__ == "__main__":
    main()
