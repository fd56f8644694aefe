/* The smallest program there is: ends with 0, without a C library, in one system call. */

void _start(void)
{
	__asm__ volatile("syscall" : : "a"(231), "D"(0)); /* exit_group */
	__builtin_unreachable();
}
