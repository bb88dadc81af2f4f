"""A command run in this process: its exit code and what it printed."""

from captum_norm.cli import main


def answer(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return (code, *capsys.readouterr())
