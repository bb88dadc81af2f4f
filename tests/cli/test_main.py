"""Every mistake is answered in one line, and nothing is left behind."""

import contextlib
import re
import signal
import subprocess
import sys
import time

import pytest

from captum_norm.__main__ import main as entry_point
from captum_norm.cli import main
from tests.cli.models import TEXT
from tests.cli.running import answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", " "), "the text is empty"),
        (("compare", "a " * 40), r"the text has 42 tokens, but .* takes 24. Shorten the text"),
        (("compare", "a", "--methods", "Norms"), "unknown method 'Norms'. There are: AttentionNorm"),
        (("compare", "a", "--target", "ugly"), "no such class. There are: bad, good"),
        (("compare", "a", "--target", "2"), "the model has 2 outputs, 0 to 1"),
        (("compare", "a", "--dtype", "int3"), "invalid choice: 'int3'"),
        (("compare", "a", "--device", "abacus"), "--device abacus is not available on this machine; here there is cpu"),
        (("compare", "a", "--json", "nowhere/x.json"), "the folder nowhere does not exist"),
        (("compare", "a", "--json", "."), r"\. is a folder: name a file inside it"),
        (("compare", "a", "--figure", "x.docx"), r"--figure x.docx: its ending should say the format"),
        (("compare",), "give a text, or --file"),
        (("compare", "a", "warm", "film"), "put a text of several words in quotes"),
        (("compare", "a", "--file", "some.txt"), "give TEXT or --file, not both"),
        (("compare", "--file", "empty.txt", "--top", "0"), "--top 0 should be at least 1"),
        (("compare", "--file", "binary.txt"), "binary.txt, line 1 is not UTF-8 text"),
        (("compare", "a", "--position", "77"), "position 77: the text has 3 tokens, 0 to 2"),
        (("compare", "a warm film", "--position", "fim"), "position 'fim': .* Did you mean film"),
        (("tokens", "--text", "nothing.txt"), "nothing.txt: no such file"),
        (("tokens", "--text", "."), r"\.: a folder. Name a text file"),
        (("tokens", "--text", "empty.txt"), "empty.txt holds no paragraph"),
        (("tokens", "--text", "binary.txt"), "binary.txt, line 1 is not UTF-8 text"),
        (("tokens", "--text", "some.txt", "--max-tokens", "0"), "'0' should be a whole number of at least 1"),
        (("tokens", "--text", "some.txt", "--max-tokens", "99"), "--max-tokens 99: .* takes 24 tokens at most"),
        (("certify", "--text", ""), "--text is empty"),
        (("unknown",), "invalid choice: 'unknown'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_answered_in_one_line(capsys, folders, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n= Title =\n")
    (tmp_path / "some.txt").write_text("a warm film\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    before = sorted(tmp_path.iterdir())
    model = () if arguments[0] == "unknown" else ("--model", folders / "classifier")
    code, out, err = answer(capsys, *arguments, *model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)
    assert sorted(tmp_path.iterdir()) == before


def test_a_bug_keeps_its_traceback(folders, monkeypatch):
    monkeypatch.setattr("captum_norm.comparison.compared._asked_of", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["compare", TEXT, "--model", str(folders / "classifier")])


@pytest.mark.parametrize("command", ["", "compare", "tokens", "certify"])
def test_help_gives_an_example(capsys, command):
    code, out, _ = answer(capsys, *filter(None, [command]), "--help")
    assert code == 0
    assert f"captum-norm {command}".strip() in out.partition("example:")[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("comprae x", "invalid choice: 'comprae' .*Did you mean compare?"),
        ("compare x --taregt 1", "there is no option --taregt. Did you mean --target?"),
        ("compare x --modle=y", "there is no option --modle. Did you mean --model?"),
        ("compare --modle y", "there is no option --modle. Did you mean --model?"),
        ("compare x --colour", "there is no option --colour. See"),
        ("view a warm film -o x", "unexpected argument warm .put a text of several words in quotes"),
        ("compare x --methods attnorm", "unknown method 'attnorm'. Did you mean AttentionNorm?"),
        ("compare x --dtype flaot32", "invalid choice: 'flaot32' .*Did you mean float32?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(capsys, line, said):
    code, out, err = answer(capsys, *line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(said.replace("?", r"\?"), err)


LIGHT = """
import sys
from captum_norm.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit_:
    code = exit_.code
heavy = {"torch", "numpy", "transformers", "captum", "matplotlib"} & sys.modules.keys()
sys.exit(f"{code} {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    ("line", "code"),
    [("--help", 0), ("--version", 0), ("compare --help", 0), ("comprae", 2), ("compare x --methods attnorm", 2),
     ("compare x --json no/such/folder", 2), ("view x", 2), ("study", 2)],
)  # fmt: skip
def test_what_needs_no_model_imports_none(line, code):
    done = subprocess.run([sys.executable, "-c", LIGHT, *line.split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, int(code == 2)), done.stderr


@pytest.mark.parametrize("where", ["captum_norm.cli.arguments.check_writable", "captum_norm.cli._parsed"])
def test_an_interrupted_command_says_so_in_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, where):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert answer(capsys, "certify", "--json", tmp_path / "x.json") == (130, "", "captum-norm: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def heard():
    """A run of tests in the background ignores interrupts, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_from_outside_ends_a_running_command_cleanly(tmp_path):
    command = [sys.executable, "-m", "captum_norm", "compare", "A film.", "--json", str(tmp_path / "x.json")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)  # wherever it is by then: at its start, among imports, or at work
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert running.returncode in (130, -signal.SIGINT)  # a shell says 130 of both
    assert (out, err) == ("", "captum-norm: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("heard")
def test_an_interrupt_that_python_loses_in_a_destructor_comes_again(capsys, monkeypatch):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt

    def command():
        Interrupted()
        time.sleep(5)
        return 0

    monkeypatch.setattr("captum_norm.cli.main", command)
    with contextlib.suppress(KeyboardInterrupt):  # which would end the tests
        assert entry_point() == 130
    assert capsys.readouterr().err == "captum-norm: interrupted\n"


INTERRUPTED_AT = """
import importlib.abc, os, signal, sys
from captum_norm.__main__ import main

where = sys.argv[1]

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == where:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["compare", "A film.", "--figure", "strips.png"]
sys.exit(main())
"""


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("module", ["captum_norm.cli", "torch", "transformers"])
def test_an_interrupt_while_something_is_loaded_is_as_clean(tmp_path, module):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_AT, module], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (130, -signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", "captum-norm: interrupted\n")
    assert not list(tmp_path.iterdir())
