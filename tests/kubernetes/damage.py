"""A repository that has lost files: what lists them stays."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.kubernetes.kube import ROOT
from tests.support.objects import KEY, SECRET, Objects

_DAMAGE = """\
import json, sys
from pgherd.backup.object_store import ObjectStore
from pgherd.model.spec import RepositorySpec
repository, cluster, secrets, group = json.loads(sys.stdin.read())
bucket = ObjectStore(RepositorySpec.model_validate(repository), cluster, secrets)
gone = 0
for stanza in bucket.folders("pgbackrest/backup"):
    if stanza.startswith(group + "-"):
        for label in bucket.folders("pgbackrest/backup/" + stanza):
            for part in ("bundle", "pg_data"):
                if part in bucket.folders(f"pgbackrest/backup/{stanza}/{label}"):
                    bucket.remove(f"pgbackrest/backup/{stanza}/{label}/{part}")
                    gone += 1
print(gone)
"""


def damage(store: Objects, cluster: str, group: str) -> None:
    """Take the files of a group's copies out of the bucket."""
    secrets = {"access-key-id": KEY, "secret-access-key": SECRET}
    done = subprocess.run(
        [sys.executable, "-m", "lab", "run", sys.executable, "-c", _DAMAGE],
        input=json.dumps([store.declared(), cluster, secrets, group]),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done
    assert int(done.stdout) > 0, "there was a copy"
