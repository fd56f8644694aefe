/*
 * The floor of a container's start: the system calls that one needs, in C, with nothing around
 * them. What the sandbox takes beyond this is its own work.
 *
 *   floor COUNT TRUE      TRUE is a static program that is copied into the root and run
 *
 * Prints one line: the median and the 99th percentile in microseconds, from before the cgroup is
 * made until it is gone. Everything is fresh, as in the sandbox: each container has its own user
 * namespace, its own id-mapped layer, the same mounts, masks and limits.
 *
 *   parent   cgroups, limits ── clone ──▶ init   mounts, pivot_root ── fork ──▶ step   exec
 *   parent   wait, remove cgroups
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CGROUP2_MAGIC 0x63677270
#define MAX_COUNT 100000
#define MAX_CAPABILITY 40
#define SECCOMP_RULES 200
#define STACK_BYTES 65536
/* Host ids of the step; they own nothing. */
#define FIRST_ID 0x20000000

static const char *const directories[] = {"proc", "dev", "tmp", "old"};
static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
/* As in the sandbox: container/proc.rs. Those that this kernel lacks are left out. */
static const char *masked[] = {
	"acpi", "allocinfo", "asound", "interrupts", "kallsyms", "kcore", "key-users", "keys",
	"kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "sched_debug",
	"schedstat", "scsi", "slabinfo", "softirqs", "sysrq-trigger", "timer_list", "timer_stats",
	"vmallocinfo",
};
static const char *fixed[] = {"bus", "fs", "irq", "mtrr", "sys"};
static const char *const nested[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};

static int user_namespace;
static char base[] = "/tmp/lazaret-floor.XXXXXX";
static char stack[STACK_BYTES] __attribute__((aligned(16)));

static void check(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static void write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	check(file, path);
	check(write(file, text, strlen(text)), path);
	close(file);
}

#include "groups.h"

static void show(const char *source, const char *target, unsigned long flags)
{
	check(mount(source, target, NULL, MS_BIND, NULL), target);
	if (flags)
		check(mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | flags, NULL), target);
}

/* The image's layer, read-only and with the container's ids. */
static void map_lower(void)
{
	struct mount_attr attributes = {
		.attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID,
		.userns_fd = user_namespace,
	};
	int tree = syscall(SYS_open_tree, AT_FDCWD, "lower", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	check(tree, "layer");
	check(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes),
	      "id map");
	check(syscall(SYS_move_mount, tree, "", AT_FDCWD, "lower", MOVE_MOUNT_F_EMPTY_PATH),
	      "layer");
	close(tree);
}

static void mount_root(void)
{
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	check(chdir(base), "base");
	check(mount("storage", "storage", "tmpfs", MS_NOSUID | MS_NODEV,
		    "size=134217728,nr_inodes=65536"), "storage");
	check(mkdir("storage/upper", 0755), "upper");
	check(mkdir("storage/work", 0755), "work");
	check(mkdir("storage/tmp", 01777), "tmp");
	check(mkdir("storage/shm", 01777), "shm");
	map_lower();
	check(mount("root", "merged", "overlay", MS_NOSUID | MS_NODEV,
		    "lowerdir=lower,upperdir=storage/upper,workdir=storage/work"), "overlay");
	check(chdir("merged"), "merged");
	check(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
	check(mount("dev", "dev", "tmpfs", MS_NOSUID, "size=65536,mode=755"), "dev");
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
		char source[64], target[64];
		snprintf(source, sizeof source, "/dev/%s", devices[i]);
		snprintf(target, sizeof target, "dev/%s", devices[i]);
		close(open(target, O_CREAT | O_CLOEXEC | O_WRONLY, 0666));
		show(source, target, 0);
	}
	check(mkdir("dev/pts", 0755), "pts");
	check(mount("pts", "dev/pts", "devpts", 0, "newinstance,ptmxmode=666"), "pts");
	check(mkdir("dev/shm", 0755), "shm");
	show("../storage/shm", "dev/shm", 0);
	show("../storage/tmp", "tmp", 0);
	check(syscall(SYS_pivot_root, ".", "old"), "pivot_root");
	check(chdir("/"), "root");
}

static void close_proc(void)
{
	char path[64];
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
		struct stat entry;
		snprintf(path, sizeof path, "/proc/%s", masked[i]);
		if (stat(path, &entry) == 0)
			show(S_ISDIR(entry.st_mode) ? "/tmp" : "/dev/null", path, 0);
	}
	for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
		snprintf(path, sizeof path, "/proc/%s", fixed[i]);
		if (access(path, F_OK) == 0)
			show(path, path, MS_RDONLY);
	}
	check(umount2("/old", MNT_DETACH), "old root");
}

/* No namespaces below this one: see container/privileges.rs. */
static void forbid_namespaces(int limits)
{
	char name[64];
	for (size_t i = 0; i < sizeof nested / sizeof *nested; i++) {
		snprintf(name, sizeof name, "max_%s_namespaces", nested[i]);
		int file = openat(limits, name, O_WRONLY | O_CLOEXEC);
		if (file < 0)
			continue;
		check(write(file, "0", 1), name);
		close(file);
	}
}

static void raise_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	check(socket_, "socket");
	check(ioctl(socket_, SIOCSIFFLAGS, &request), "lo");
	close(socket_);
}

/* As many comparisons as a real allow list has; all lead to "allow". */
static void filter_calls(void)
{
	static struct sock_filter rules[SECCOMP_RULES + 2];
	rules[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						offsetof(struct seccomp_data, nr));
	for (int i = 1; i <= SECCOMP_RULES; i++)
		rules[i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 5000 + i, 0, 0);
	rules[SECCOMP_RULES + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {.len = SECCOMP_RULES + 2, .filter = rules};
	check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

static void step(void)
{
	char *arguments[] = {"/true", NULL}, *environment[] = {NULL};
	struct rlimit files = {256, 256}, core = {1, 1};
	check(setsid(), "setsid");
	check(setrlimit(RLIMIT_NOFILE, &files), "files");
	check(setrlimit(RLIMIT_CORE, &core), "core");
	for (int capability = 0; capability <= MAX_CAPABILITY; capability++)
		check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "capability");
	check(syscall(SYS_setresgid, 1000, 1000, 1000), "gid");
	check(syscall(SYS_setresuid, 1000, 1000, 1000), "uid");
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	filter_calls();
	check(syscall(SYS_close_range, 3, ~0U, 0), "close_range");
	execve(arguments[0], arguments, environment);
	_exit(127);
}

static void init(const int *joins)
{
	for (int i = 0; i < hierarchy_count && hierarchies == version1; i++)
		check(write(joins[i], "0", 1), "join");
	mount_root();
	int limits = open("/proc/sys/user", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(limits, "/proc/sys/user");
	close_proc();
	raise_loopback();
	check(sethostname("lazaret", 7), "host name");
	check(setns(user_namespace, CLONE_NEWUSER), "user namespace");
	forbid_namespaces(limits);
	pid_t child = fork();
	check(child, "fork");
	if (child == 0)
		step();
	int status;
	check(waitpid(child, &status, 0), "wait");
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 126);
}

static int rest(void *unused)
{
	(void)unused;
	pause();
	return 0;
}

/* A user namespace with 65,536 ids, made by a process that does nothing else. */
static void make_user_namespace(void)
{
	char path[64], map[64];
	pid_t holder = clone(rest, stack + STACK_BYTES, CLONE_NEWUSER | SIGCHLD, NULL);
	check(holder, "user namespace");
	snprintf(map, sizeof map, "0 %d 65536", FIRST_ID);
	snprintf(path, sizeof path, "/proc/%d/uid_map", (int)holder);
	write_file(path, map);
	snprintf(path, sizeof path, "/proc/%d/gid_map", (int)holder);
	write_file(path, map);
	snprintf(path, sizeof path, "/proc/%d/ns/user", (int)holder);
	user_namespace = open(path, O_RDONLY | O_CLOEXEC);
	check(user_namespace, path);
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
}

static void make_lower(const char *program)
{
	char command[8192];
	char *absolute = realpath(program, NULL);
	check(absolute ? 0 : -1, program);
	if (mkdtemp(base) == NULL || chmod(base, 0755) < 0 || chdir(base) < 0)
		check(-1, base);
	check(mkdir("lower", 0755), "lower");
	check(mkdir("merged", 0755), "merged");
	check(mkdir("storage", 0755), "storage");
	check(chdir("lower"), "lower");
	for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
		check(mkdir(directories[i], 0755), directories[i]);
	check(chdir("/"), "root");
	snprintf(command, sizeof command, "cp '%s' %s/lower/true", absolute, base);
	check(system(command) == 0 ? 0 : -1, command);
}

static double run_once(void)
{
	struct clone_args arguments = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |
			 CLONE_NEWCGROUP,
		.exit_signal = SIGCHLD,
	};
	struct timespec start, end;
	int joins[4], status;
	clock_gettime(CLOCK_MONOTONIC, &start);
	make_user_namespace();
	make_groups(joins);
	int notice = hierarchies == version1 ? watch_memory() : -1;
	if (hierarchies == version2) {
		arguments.flags |= CLONE_INTO_CGROUP;
		arguments.cgroup = joins[0];
	}
	pid_t child = syscall(SYS_clone3, &arguments, sizeof arguments);
	check(child, "clone");
	if (child == 0)
		init(joins);
	check(waitpid(child, &status, 0), "wait");
	if (notice >= 0)
		close(notice);
	remove_groups(joins);
	close(user_namespace);
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (status != 0) {
		fprintf(stderr, "floor: a container ended with %x\n", status);
		exit(1);
	}
	return (end.tv_sec - start.tv_sec) * 1e6 + (end.tv_nsec - start.tv_nsec) / 1e3;
}

static int compare(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;
	return (a > b) - (a < b);
}

int main(int count_of_arguments, char **arguments)
{
	static double times[MAX_COUNT];
	struct statfs root;
	int count = count_of_arguments == 3 ? atoi(arguments[1]) : 0;
	if (count < 1 || count > MAX_COUNT) {
		fprintf(stderr, "usage: floor COUNT TRUE\n");
		return 2;
	}
	check(statfs("/sys/fs/cgroup", &root), "/sys/fs/cgroup");
	hierarchies = root.f_type == CGROUP2_MAGIC ? version2 : version1;
	hierarchy_count = hierarchies == version2 ? 1 : 4;
	if (hierarchies == version2)
		write_file("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids");
	make_lower(arguments[2]);
	for (int i = 0; i < count; i++)
		times[i] = run_once();
	char command[512];
	snprintf(command, sizeof command, "rm -r %s", base);
	check(system(command) == 0 ? 0 : -1, command);
	qsort(times, count, sizeof *times, compare);
	printf("{\"median_us\": %.0f, \"p99_us\": %.0f, \"count\": %d}\n", times[count / 2],
	       times[count * 99 / 100], count);
	return 0;
}
