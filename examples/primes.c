/* Prints the first primes, one every fifth of a second, to be seen as they come. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	for (int number = 2, found = 0; found < 5; number++) {
		int divisor = 2;
		while (number % divisor)
			divisor++;
		if (divisor < number)
			continue;
		printf("%d is prime\n", number);
		fflush(stdout);
		usleep(200000);
		found++;
	}
}
