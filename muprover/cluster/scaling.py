"""How many pods a component has, changed by hand."""

from __future__ import annotations

from muprover.cluster.connection import ClusterError
from muprover.cluster.release import Release

SCALABLE = ("agent", "network", "environment")


def scale(release: Release, component: str, count: int) -> str:
    """Asks for `count` pods of a component; says what comes of it."""
    workload = release.workload(component)
    autoscaler = release.autoscaler(workload)
    if autoscaler is not None:
        name, spec = autoscaler["metadata"]["name"], autoscaler["spec"]
        least, most = spec.get("minReplicas", 1), spec["maxReplicas"]
        raise ClusterError(
            f"autoscaler {name} owns the number of {component}s ({least} to {most}, now "
            f"{workload.replicas}) and would undo this within seconds. Change its bounds "
            f"with helm upgrade ({component}.autoscaling), or turn it off there"
        )
    apps = release.cluster.apps
    patch = {
        "Deployment": apps.patch_namespaced_deployment_scale,
        "StatefulSet": apps.patch_namespaced_stateful_set_scale,
    }[workload.kind]
    release.cluster.patch(patch, workload.name, {"spec": {"replicas": count}})
    lines = [f"{workload.name}: {workload.replicas} → {count}"]
    lines.append(
        f"note: helm upgrade sets {component}.replicaCount again (Helm 4 stops at a conflict), "
        f"unless it is null or {count}"
    )
    return "\n".join(lines)
