"""`kiara-run`, as a module and as a command: what stands before its import, which takes a moment."""

from kiara_runtime.system import early_interrupts


def main() -> None:
    with early_interrupts():
        from kiara_runtime.commands.main import main as command
    command()


if __name__ == "__main__":
    main()
