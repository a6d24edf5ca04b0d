"""The job files of `deploy/`: rendered anew they are what is there, and what they ask for is what Kubernetes and Slurm know."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from kubernetes import client as models
from mlflow.projects import kubernetes as backend
from mlflow.projects._project_spec import load_project
from mlflow.projects.docker import _create_docker_build_ctx

from deploy.render import FILES, HERE, render
from tests.conftest import ROOT
from tracked_cls.errors import UserError
from tracked_cls.provenance import CORES, num_cores

PARAMETERS = yaml.safe_load((HERE / "jobs.yaml").read_text())


def changed(**values):
    """Return the parameters with others in place of some; `a__b` is b in a."""
    parameters = json.loads(json.dumps(PARAMETERS))
    for key, value in values.items():
        *sections, last = key.split("__")
        place = parameters
        for section in sections:
            place = place[section]
        place[last] = value
    return parameters


# ---- rendering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_what_is_there_is_what_the_parameters_give(name):
    assert (HERE / name).read_text() == render(PARAMETERS)[name]


def test_a_word_of_an_option_stays_one_word_everywhere():
    given = changed(options={"params": "params/train.yaml", "tracking.run_name": 'it\'s $HOME "now": {1}'})
    files = render(given)
    wanted = ["--params", "params/train.yaml", "--tracking.run_name", 'it\'s $HOME "now": {1}']

    (job,) = (found for found in yaml.safe_load_all(files["kubernetes/together.yaml"]) if found["kind"] == "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    shown = files["slurm/together.sh"].split("python -m pipelines.train ")[1].split(" &\n")[0]
    told = subprocess.run(["bash", "-c", f"printf '%s\\n' {shown}"], capture_output=True, text=True, check=True)

    assert container["command"][3:] == wanted
    assert told.stdout.splitlines() == wanted


def test_processes_that_do_not_fill_their_machines_are_refused():
    with pytest.raises(ValueError, match="processes=3 must be a multiple of slurm.processes_per_machine=2"):
        render(changed(processes=3, slurm__processes_per_machine=2))


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


def check(value, kind, where):
    """Raise AssertionError unless a manifest's value is of a kind of Kubernetes' own models, to the last key."""
    if match := re.fullmatch(r"(List|Dict)\[(?:str, )?(.+)\]", kind):
        assert isinstance(value, list if match[1] == "List" else dict), f"{where}: a {match[1]} is wanted, not {value!r}"
        items = enumerate(value) if match[1] == "List" else value.items()
        for key, item in items:
            check(item, match[2], f"{where}[{key}]")
    elif (model := getattr(models, kind, None)) is not None and hasattr(model, "openapi_types"):
        assert isinstance(value, dict), f"{where}: {value!r} is no {kind}"
        names = {outside: inside for inside, outside in model.attribute_map.items()}
        assert set(value) <= set(names), f"{where}: {kind} knows no {set(value) - set(names)}"
        for key, item in value.items():
            check(item, model.openapi_types[names[key]], f"{where}.{key}")
        model(**{names[key]: item for key, item in value.items()})  # raises for what is required and not there
    elif kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{where}: {value!r} is no {kind}"
    else:
        assert kind == "object", f"{where}: an unknown kind {kind}"


def manifests(parameters):
    """Return the manifests as they are sent: that of `mlflow run` once MLflow has filled it in."""
    files = render(parameters)
    template = yaml.safe_load(files["kubernetes/job.yaml"])
    variables = {"MLFLOW_RUN_ID": "0" * 32, "MLFLOW_TRACKING_URI": parameters["tracking"], "MLFLOW_EXPERIMENT_ID": "1"}
    command = ["python -m pipelines.train --params params/train.yaml --model 'small_cnn'"]
    words = backend._get_run_command(command)
    filled = backend._get_kubernetes_job_definition("tracked-cls", "image:1", "sha256:0", words, variables, template)
    return [filled, *yaml.safe_load_all(files["kubernetes/together.yaml"])]


@pytest.mark.parametrize("values", [{}, {"gpus": 1, "processes": 4, "verb": "tune"}], ids=["as it is", "with GPUs"])
def test_the_manifests_are_of_kubernetes_own_models(values):
    for manifest in manifests(changed(**values)):
        check(manifest, f"V1{manifest['kind']}", manifest["kind"])


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda job: job["spec"].update(backofLimit=3), "backofLimit"),
        (lambda job: job["spec"].update(backoffLimit="3"), "backoffLimit: '3' is no int"),
        (lambda job: job["spec"]["template"]["spec"]["containers"][0]["env"].append({"value": "x"}), "name\n  Field required"),
    ],
    ids=["an unknown key", "a text for a number", "a name left out"],
)
def test_a_manifest_that_is_not_would_be_seen(break_it, named):
    job = manifests(PARAMETERS)[0]
    break_it(job)
    with pytest.raises((AssertionError, ValueError), match=named):
        check(job, "V1Job", "Job")


def test_each_pod_is_told_its_rank_and_where_the_first_one_is():
    _, service, job = manifests(changed(processes=4))
    pod = job["spec"]["template"]["spec"]
    variables = {given["name"]: given.get("value") for given in pod["containers"][0]["env"]}

    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["WORLD_SIZE"]) == 4
    assert pod["subdomain"] == service["metadata"]["name"] == variables["MASTER_ADDR"].partition(".")[2]
    assert variables["MASTER_ADDR"].partition(".")[0] == f"{job['metadata']['name']}-0"
    assert service["spec"]["ports"][0]["port"] == int(variables["MASTER_PORT"])
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def test_a_pod_is_told_its_cores_where_it_sees_all_of_its_node(monkeypatch):
    job, _, together = manifests(changed(cpus=3))
    for manifest in (job, together):
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert container["resources"]["requests"]["cpu"] == given[CORES] == "3"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setenv(CORES, given[CORES])

    assert num_cores() == 3


@pytest.mark.parametrize("told", ["", "0", "-1", "two", "1.5"])
def test_what_is_no_number_of_cores_is_refused(monkeypatch, told):
    monkeypatch.setenv(CORES, told)
    with pytest.raises(UserError, match=f"{CORES} must be a whole number of cores >= 1, got '{told}'"):
        num_cores()


def test_no_job_file_holds_a_secret():
    for name, text in render(PARAMETERS).items():
        found = re.findall(r"(?i)(?:password|secret|token)\S*[:=] *\S+", text)
        assert all("secretKeyRef" in line or "mlflow_tracking_password = ..." in line or "key:" in line for line in found), name


def test_the_project_for_kubernetes_has_the_entry_points_of_the_other_one():
    ours, root = (yaml.safe_load((folder / "MLproject").read_text()) for folder in (HERE / "kubernetes", ROOT))

    assert ours["entry_points"] == root["entry_points"]
    assert ours["docker_env"] == {"image": f"{PARAMETERS['kubernetes']['image']}:{PARAMETERS['kubernetes']['tag']}"}
    assert "conda_env" not in ours
    assert load_project(str(HERE / "kubernetes")).docker_env == ours["docker_env"]


def test_the_code_goes_into_the_image_that_mlflow_builds():
    """The links are followed: MLflow copies the project's folder, and nothing above it."""
    archive = Path(_create_docker_build_ctx(str(HERE / "kubernetes"), "FROM x\n"))
    try:
        listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
    finally:
        archive.unlink()

    assert {"pipelines/train.py", "src/tracked_cls/api.py", "params/train.yaml", "MLproject"} <= {
        line.partition("/")[2] for line in listed
    }


# ---- Slurm -----------------------------------------------------------------------------------------------------------

STUBS = {
    # as Slurm does: options from the #SBATCH lines, one variable each for the script; then the script, on the first machine
    "sbatch": """
        script=$1
        option() { sed -n "s/^#SBATCH --$1=//p" "$script"; }
        export SLURM_JOB_ID=${SLURM_JOB_ID:-17} SLURM_JOB_NODELIST=127.0.0.1 SLURM_CPUS_PER_TASK=$(option cpus-per-task)
        export SLURM_NTASKS=$(($(option nodes) * $(option ntasks-per-node))) STUB_EACH=$(option ntasks-per-node)
        exec bash "$script"
    """,
    "scontrol": """
        case $1 in
          show) [ "$2" = hostnames ] && echo "$3" ;;
          requeue) echo "$2" >>"$STUB_LOG.requeued" ;;
        esac
    """,
    # a signal for all steps of the job, not for its script
    "scancel": """
        [ "$*" = "--signal=TERM $SLURM_JOB_ID" ] || exit 99
        kill -TERM $(cat "$STUB_LOG.tasks")
    """,
    # --kill-on-bad-exit: once one task has failed the others are told to stop; the highest exit code is srun's. A task has one
    # CPU unless srun itself is told otherwise. Told to stop, srun kills its tasks and lets them save nothing
    "srun": """
        export STUB_CPUS=1
        while [[ $1 = --* ]]; do
          case $1 in
            --kill-on-bad-exit=1) ;;
            --cpus-per-task=*) STUB_CPUS=${1#*=} ;;
            *) exit 99 ;;
          esac
          shift
        done
        tasks=()
        for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
          SLURM_PROCID=$rank SLURM_LOCALID=$((rank % STUB_EACH)) SLURM_NODEID=$((rank / STUB_EACH)) "$@" &
          tasks+=($!)
        done
        echo "${tasks[@]}" >"$STUB_LOG.tasks"
        trap 'kill -KILL "${tasks[@]}" 2>/dev/null' TERM
        highest=0
        while [ -n "$(jobs -rp)" ]; do
          code=0
          wait -n || code=$?
          [ $code -eq 0 ] || kill "${tasks[@]}" 2>/dev/null || true
          [ $code -le $highest ] || highest=$code
        done
        exit $highest
    """,
}


class Cluster:
    """A folder with Slurm's commands on the PATH, and a `python` of the test's choice."""

    def __init__(self, folder, python):
        self.folder = folder
        for name, text in {**STUBS, "python": python}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{text}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self, parameters, **variables):
        """Start the rendered script."""
        script = self.folder / "together.sh"
        script.write_text(render(parameters)["slurm/together.sh"])
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "STUB_LOG": str(self.folder / "log"), **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["sbatch", script], cwd=self.folder, env=environment, **pipes)

    def submit(self, parameters, **variables):
        """Run the rendered script to its end."""
        job = self.start(parameters, **variables)
        stdout, stderr = job.communicate(timeout=300)
        return subprocess.CompletedProcess(job.args, job.returncode, stdout, stderr)

    @property
    def requeued(self):
        return (self.folder / "log.requeued").exists()


TOLD = 'echo "$RANK $LOCAL_RANK $GROUP_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >>"$STUB_LOG"\n'
# what a rank of ours finds in its place, where it sees so many cores
FOUND = f"""exec {sys.executable} -c '
import os
from tracked_cls import distributed as d, provenance as p
os.sched_getaffinity = lambda _: range(int(os.environ["STUB_CORES"]))
rank = d.Ranks(local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]))
line = [os.environ["STUB_CPUS"], rank.threads_of(p.num_cores()), d.cores_here(), d.is_restart()]
open(os.environ["STUB_LOG"], "a").write(" ".join(map(str, line)) + chr(10))
'
"""


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_slurm_script_is_one_that_bash_can_read(gpus):
    text = render(changed(gpus=gpus))["slurm/together.sh"]
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    options = re.findall(r"^#SBATCH --([a-z-]+)=?", text, re.MULTILINE)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert ("gpus-per-node" in options) is bool(gpus)
    assert text.index("#SBATCH") < text.index("set -euo"), "Slurm reads no option after the first command"


def test_slurm_tells_every_rank_its_place(tmp_path):
    cluster = Cluster(tmp_path, TOLD)
    done = cluster.submit(changed(processes=4, slurm__processes_per_machine=2))

    assert done.returncode == 0, done.stderr
    lines = sorted((tmp_path / "log").read_text().splitlines())
    words = "4 2 127.0.0.1 20017 -m pipelines.train --params params/train.yaml"
    assert lines == [f"{rank} {rank % 2} {rank // 2} {words}" for rank in range(4)]


def found(folder, each=1, **variables):
    """Return what ranks of ours find under the Slurm script: CPUs of srun's, threads, cores for loading, whether they go on."""
    parameters = changed(processes=2, cpus=3, slurm__processes_per_machine=each)
    done = Cluster(folder, FOUND).submit(parameters, PYTHONPATH=str(ROOT / "src"), **variables)
    assert done.returncode == 0, done.stderr
    return (folder / "log").read_text().splitlines()


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("seen", [3, 64], ids=["bound to its cores", "bound to none"])
def test_each_rank_has_the_cpus_that_slurm_gives_it_however_many_share_a_machine(tmp_path, each, seen):
    assert found(tmp_path, each, STUB_CORES=str(seen)) == ["3 3 3 False"] * 2


def test_a_job_that_slurm_put_back_goes_on_whatever_resume_says(tmp_path):
    assert found(tmp_path, STUB_CORES="3", SLURM_RESTART_COUNT="1") == ["3 3 3 True"] * 2


def test_two_jobs_on_one_machine_meet_at_ports_of_their_own(tmp_path):
    ports = []
    for job in (17, 18, 12_000_016):
        Cluster(tmp_path, 'echo "$MASTER_PORT" >"$STUB_LOG"\n').submit(PARAMETERS, SLURM_JOB_ID=str(job))
        ports.append(int((tmp_path / "log").read_text()))

    assert ports == [20_017, 20_018, 20_016]


# as a training does: it saves when it is told to stop
SAVES = """trap 'touch "$STUB_LOG.saved.$RANK"; exit 143' TERM
touch "$STUB_LOG.$RANK"
for _ in {1..600}; do sleep 0.1; done"""


def test_a_job_that_was_told_to_stop_waits_for_its_ranks_and_is_put_back(tmp_path):
    cluster = Cluster(tmp_path, SAVES)
    job = cluster.start(PARAMETERS)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("log.[01]"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)

    job.terminate()

    assert job.wait(timeout=60) == 143
    assert sorted(path.suffix for path in tmp_path.glob("log.saved.*")) == [".0", ".1"]
    assert cluster.requeued


def test_a_job_of_which_one_rank_fails_and_takes_the_others_with_it_is_not_put_back(tmp_path):
    cluster = Cluster(tmp_path, f'[ "$RANK" = 1 ] && exit 1\n{SAVES}')

    assert cluster.submit(PARAMETERS).returncode > 0
    assert not cluster.requeued


def of_digits(folder, **options):
    """Return what the script is rendered from, and the variables, for two ranks that train on a few images."""
    small = {"params": str(ROOT / "params" / "train.yaml"), "model": "small_cnn", "limit": 200, **options}
    variables = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "SLURM_JOB_ID": str(_free_job())}
    return changed(options=small, cpus=1, tracking=f"sqlite:///{folder / 'mlflow.db'}"), variables


REAL = f'exec {sys.executable} "$@"'


@pytest.mark.slow
def test_two_ranks_train_one_network_under_the_slurm_script(tmp_path):
    parameters, variables = of_digits(tmp_path, epochs=1)

    done = Cluster(tmp_path, REAL).submit(parameters, **variables)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("epoch 1/1") == 1


@pytest.mark.slow
def test_a_training_under_the_slurm_script_is_stopped_saved_and_gone_on_with(tmp_path):
    parameters, variables = of_digits(tmp_path, epochs=20, resume="never")
    cluster = Cluster(tmp_path, REAL)
    job = cluster.start(parameters, **variables)
    first = re.compile("epoch +1/20")
    assert any(first.search(line) for line in job.stdout)

    job.terminate()
    said, _ = job.communicate(timeout=300)
    assert (job.returncode, cluster.requeued) == (143, True)
    assert "interrupted: saved after epoch" in said

    done = cluster.submit(parameters, SLURM_RESTART_COUNT="1", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing an interrupted run after epoch" in done.stdout
    assert not first.search(done.stdout)


def _free_job():
    """Return a job's number that leads to a free port."""
    for job in range(os.getpid() % 12_000, 24_000):
        with suppress(OSError), socket.create_server(("127.0.0.1", 20_000 + job % 12_000)):
            return job
    raise AssertionError("no port is free")
