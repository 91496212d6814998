// Measures how long pods of a cluster take from the request that makes them until they are ready, one after the other.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	image := flag.String("image", "berth.test/busybox:1", "an image with a shell that the node has")
	count := flag.Int("count", 20, "so many pods")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		fail(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		fail(err)
	}
	var times []time.Duration
	for i := range *count {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		took, err := start(ctx, client, fmt.Sprintf("start-%d-%d", os.Getpid(), i), *image)
		cancel()
		if err != nil {
			fail(err)
		}
		times = append(times, took)
	}
	slices.Sort(times)
	fmt.Printf("%d pods: from the request to ready %d ms in the middle, %d to %d ms\n", *count,
		times[len(times)/2].Milliseconds(), times[0].Milliseconds(), times[len(times)-1].Milliseconds())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "podstart:", err)
	os.Exit(1)
}

// Makes a pod, waits until it is ready, and removes it.
func start(ctx context.Context, client kubernetes.Interface, name, image string) (time.Duration, error) {
	pods := client.CoreV1().Pods("default")
	watch, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	grace := int64(0)
	container := v1.Container{Name: "main", Image: image, Command: []string{"sleep", "1000"}}
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1.PodSpec{Containers: []v1.Container{container}, TerminationGracePeriodSeconds: &grace},
	}
	began := time.Now()
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	for event := range watch.ResultChan() {
		if pod, ok := event.Object.(*v1.Pod); ok && ready(pod) {
			took := time.Since(began)
			return took, pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
		}
	}
	return 0, fmt.Errorf("pod %s is not ready: the watch has ended", name)
}

func ready(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(condition v1.PodCondition) bool {
		return condition.Type == v1.PodReady && condition.Status == v1.ConditionTrue
	})
}
