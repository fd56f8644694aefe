/* The cgroups of one container, on both versions. Part of floor.c. */
struct limit {
	const char *file;
	const char *value;
};

struct hierarchy {
	const char *mount;
	struct limit limits[4];
};

static const struct hierarchy version1[] = {
	{"/sys/fs/cgroup/cpu", {{"cpu.cfs_quota_us", "100000"}, {"cpu.shares", "1024"}}},
	{"/sys/fs/cgroup/cpuacct", {{0}}},
	{"/sys/fs/cgroup/memory",
	 {{"memory.limit_in_bytes", "268435456"},
	  {"memory.memsw.limit_in_bytes", "268435456"},
	  {"memory.kmem.tcp.limit_in_bytes", "16777216"}}},
	{"/sys/fs/cgroup/pids", {{"pids.max", "64"}}},
};

static const struct hierarchy version2[] = {
	{"/sys/fs/cgroup",
	 {{"cpu.max", "100000 100000"},
	  {"memory.max", "268435456"},
	  {"memory.swap.max", "0"},
	  {"pids.max", "64"}}},
};

static const struct hierarchy *hierarchies;
static int hierarchy_count;

/* The directory of this process's cgroups in one hierarchy. */
static const char *group_path(int index, const char *file)
{
	static char path[256];
	snprintf(path, sizeof path, "%s/lazaret-floor-%d/%s", hierarchies[index].mount,
		 (int)getpid(), file);
	return path;
}

/*
 * Makes the cgroups. The descriptors are for joining: `tasks`, to be written by init itself, or
 * the directory that init is born in on version 2. Either takes a tenth of what writing another's
 * pid to `cgroup.procs` takes.
 */
static void make_groups(int *joins)
{
	for (int i = 0; i < hierarchy_count; i++) {
		check(mkdir(group_path(i, ""), 0755), "cgroup");
		for (int j = 0; j < 4 && hierarchies[i].limits[j].file; j++) {
			const struct limit *limit = &hierarchies[i].limits[j];
			/* Swap is not counted everywhere. */
			if (access(group_path(i, limit->file), W_OK) == 0)
				write_file(group_path(i, limit->file), limit->value);
		}
		joins[i] = hierarchies == version1
				   ? open(group_path(i, "tasks"), O_WRONLY | O_CLOEXEC)
				   : open(group_path(i, ""), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		check(joins[i], "cgroup");
	}
}

/* Has the kernel tell when the container is out of memory. */
static int watch_memory(void)
{
	char registration[64];
	int notice = eventfd(0, EFD_CLOEXEC);
	int control = open(group_path(2, "memory.oom_control"), O_RDONLY | O_CLOEXEC);
	check(control, "memory.oom_control");
	snprintf(registration, sizeof registration, "%d %d", notice, control);
	write_file(group_path(2, "cgroup.event_control"), registration);
	close(control);
	return notice;
}

static void remove_groups(const int *joins)
{
	for (int i = 0; i < hierarchy_count; i++) {
		close(joins[i]);
		/* The kernel lets go of the last task a moment after it was waited for. */
		while (rmdir(group_path(i, "")) < 0 && errno == EBUSY)
			sched_yield();
	}
}
