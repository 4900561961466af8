import pytest

from tests.deploy.host import install, need_root


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The project as a user installs it, made once, for every host that boots."""
    need_root()
    return install(tmp_path_factory.mktemp("installed"))
