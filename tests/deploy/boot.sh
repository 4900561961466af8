#!/bin/bash
# A host of its own: the real systemd as PID 1 in new namespaces, over an overlay of this machine's root, whose files stay
# as they are. Usage: boot.sh NAME FROM:TO…, where each directory FROM of this machine is seen there as TO, read-only.
# Ends when the host is switched off.
set -euo pipefail
name=$1
shift

# A control group of its own in every hierarchy, so that the host's systemd takes over no group of this machine.
groups=(/sys/fs/cgroup/*/)
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then groups=(/sys/fs/cgroup/); fi
for group in "${groups[@]}"; do
	[ -w "$group/cgroup.procs" ] || continue
	mkdir -p "$group/$name"
	case $group in
	*/cpuset/) for file in cpus mems; do cat "$group/cpuset.$file" >"$group/$name/cpuset.$file"; done ;;
	esac
	echo $$ >"$group/$name/cgroup.procs"
done

inside() {
	set -euo pipefail
	scratch=/run/$name
	mkdir -p "$scratch"
	mount -t tmpfs -o mode=755 tmpfs "$scratch"
	mkdir "$scratch"/{upper,work,root}
	mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
	cd "$scratch/root"
	mount -t proc proc proc
	mount -t sysfs -o ro sysfs sys
	mount -t tmpfs -o mode=755 tmpfs dev
	mkdir dev/pts dev/shm
	for device in null zero full random urandom tty; do
		touch "dev/$device"
		mount --bind "/dev/$device" "dev/$device"
	done
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
	ln -s /proc/self/fd dev/fd
	mount -t tmpfs tmpfs dev/shm
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs -o mode=1777 tmpfs tmp
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		mount -t cgroup2 cgroup2 sys/fs/cgroup
	else
		mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
		for controller in memory pids cpu cpuacct blkio; do
			mkdir "sys/fs/cgroup/$controller"
			mount -t cgroup -o "$controller" cgroup "sys/fs/cgroup/$controller"
		done
		mkdir sys/fs/cgroup/{systemd,unified}
		mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
		mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
	fi
	for bind in "$@"; do
		mkdir -p ".${bind#*:}"
		mount --bind -o ro "${bind%%:*}" ".${bind#*:}"
	done
	# This machine's Python may lie where services cannot see it, and look for its own library there.
	mkdir -p etc/systemd/system.conf.d
	printf '[Manager]\nDefaultEnvironment=LD_LIBRARY_PATH=/opt/tts/python/lib\n' >etc/systemd/system.conf.d/python.conf
	ip link set lo up
	hostname "$name"
	pivot_root . mnt
	cd /
	umount -l /mnt
	# systemd leaves this to whoever starts a container, and hands over no credential without it.
	mount --make-rshared /
	exec env -i container="$name" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd systemd.unit=basic.target systemd.show_status=0
}

export name
export -f inside
# It ends with whoever started it, too: tests that are killed from outside leave no machine behind.
exec setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --pid --cgroup --fork --kill-child --propagation private \
	bash -c 'inside "$@"' inside "$@" </dev/null
