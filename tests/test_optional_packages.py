"""A package of an extra that is missing is named with the way out; what fails inside one fails as it is."""

import pytest

from captum_norm.optional_packages import required


def test_a_module_that_is_there_is_given():
    assert required("json.decoder", "this").JSONDecoder


def test_a_package_that_is_missing_is_named_with_who_needs_it_and_the_way_out():
    with pytest.raises(ImportError, match=r'holm needs absent, which is not installed.*"captum-norm\[study\]"'):
        required("absent.stats", "holm")


def test_what_a_package_itself_lacks_is_not_blamed_on_it(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import absent_too\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent_too'"):
        required("half_installed", "holm")
