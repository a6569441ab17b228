/* test_corpus: does again what the fuzzer kept, every file of tests/fuzz/corpus: bytes that are operations, beside the shadow.
 *
 * usage: test_corpus [file or folder]
 */
#include "model.h"
#include "test.h"

#include <dirent.h>
#include <sys/stat.h>

static int files;

static void replay(const char *path)
{
	static uint8_t bytes[1 << 16];
	FILE *file = fopen(path, "rb");
	size_t len;

	snprintf(test_context, sizeof test_context, "%.200s", path);
	EXPECT(file);
	len = fread(bytes, 1, sizeof bytes, file);
	fclose(file);
	EXPECT(len > 0);
	model_replay(bytes, len);
	files++;
}

static void replay_folder(const char *path, int stride)
{
	struct dirent **entries;
	char name[4096];
	int count = scandir(path, &entries, NULL, alphasort);

	EXPECT(count > 2);
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
		if (entries[i]->d_name[0] != '.' && i % stride == 0)
			replay(name);
		free(entries[i]);
	}
	free(entries);
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "tests/fuzz/corpus";
	struct stat status;

	EXPECT(stat(path, &status) == 0);
	if (S_ISDIR(status.st_mode))
		replay_folder(path, test_amount(1, argv, 1, 20));
	else
		replay(path);
	EXPECT(files > 0);
	printf("%d files, %ld system calls made to fail, %d domains sealed\nok\n", files, model_failures(), model_sealed());
	return 0;
}
